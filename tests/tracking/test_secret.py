"""Secrets: what hides them, and what is left as it is."""

from __future__ import annotations

import pytest

from hatbus.errors import JobError
from hatbus.tracking import redacted, refuse_credentials, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer from http://me:pass@host:5000/api", "no answer from http://***@host:5000/api"),
        ("postgresql+psycopg2://me:p%40ss@host/runs", "postgresql+psycopg2://***@host/runs"),
        ("https://token@host", "https://***@host"),
        ("http://host/?write_token=abc&x=1", "http://host/?write_token=***&x=1"),
        ("http://host/a@b", "http://host/a@b"),
        ("sqlite:///runs.db", "sqlite:///runs.db"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_addresses_lose_what_lets_somebody_in(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_values_of_secret_environment_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    assert redacted("key 0123456789abcdef of hunter22") == "key *** of ***"


def test_settings_named_like_secrets_are_hidden_and_others_are_not() -> None:
    table = {
        "api_key": "a",
        "hf_token": "hf_0123456789abcdef",
        "pad_token": "<pad>",
        "num_tokens": 3,
        "run": {"password": "b", "urls": ["http://me:pass@host"]},
        "keys": "qkv",
    }
    assert without_secrets(table) == {
        "api_key": "***",
        "hf_token": "***",
        "pad_token": "<pad>",
        "num_tokens": 3,
        "run": {"password": "***", "urls": ["http://***@host"]},
        "keys": "qkv",
    }


def test_an_option_with_a_password_is_refused_without_saying_it() -> None:
    with pytest.raises(JobError) as refused:
        refuse_credentials("mlflow: tracking_uri", "http://me:hunter2@host", "THE_ENVIRONMENT")
    assert "hunter2" not in str(refused.value)
    assert "THE_ENVIRONMENT" in str(refused.value)
    refuse_credentials("mlflow: tracking_uri", "http://host:5000", "THE_ENVIRONMENT")
