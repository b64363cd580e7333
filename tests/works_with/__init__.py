"""Pairs of hatbus and another library, each killed in mid-epoch, resumed and compared bit for bit.

``python tests/works_with/run.py`` tries them, prints the table of ``docs/works-with.md`` and fails
where a pair is not what the page says; ``--record`` writes the page anew.

    pair.py      what a pair is
    small.py     the models and data that pairs are made of
    trial.py     the three runs of a pair, and what is compared
    run.py       the program: a process per library, forked from one that has torch
    of_*.py      the pairs, by kind; a library is imported only when its pair is built
"""
