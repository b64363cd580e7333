"""Three stages in HAT's form: float, QAT and int, on handwritten digits.

``hatbus run config.py --stage float_trainer``, then ``qat_trainer``, then ``int_infer_trainer``.
"""

import os

import torch
from torch import nn
from torch.utils.data import Dataset
from train import conv, read_digits

from hatbus.batches import collect_loss_by_regex

training_step = os.environ.get("HAT_TRAINING_STEP", "float")
ckpt_dir = "models"
num_epochs = 6


class Digits(Dataset):
    """Images and labels as dicts, as HAT's data sets give them."""

    def __init__(self, train):
        self.images, self.labels = read_digits()[0 if train else 1].tensors

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"img": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """Losses in training, predictions in eval; stubs where int8 begins and ends."""

    def __init__(self, width):
        super().__init__()
        torch.set_num_threads(1)
        self.quant = torch.ao.quantization.QuantStub()
        self.backbone = nn.Sequential(*conv(1, width), *conv(width, width), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(width * 4 * 4, 10))
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, data):
        scores = self.dequant(self.head(self.backbone(self.quant(data["img"]))))
        if not self.training:
            return {"pred": scores}
        return {"pred": scores, "cls_loss": nn.functional.cross_entropy(scores, data["labels"])}


class TopOne:
    """HAT's kind of metric: update, reset, get."""

    name = "Acc"

    def __init__(self):
        self.reset()

    def reset(self):
        self.right = self.total = 0

    def update(self, labels, preds):
        self.right += int((preds.argmax(1) == labels).sum())
        self.total += len(labels)

    def get(self):
        return self.name, self.right / max(self.total, 1)


def update_metric(metrics, batch, model_outs):
    for metric in metrics:
        metric.update(batch["labels"], model_outs["pred"])


model = dict(type=Classifier, width=16)
data_loader = dict(
    type="hatbus.data.loader",
    dataset=dict(type=Digits, train=True),
    batch_size=64,
)
val_data_loader = dict(
    type=torch.utils.data.DataLoader,
    dataset=dict(type=Digits, train=False),
    batch_size=256,
)
batch_processor = dict(
    type="MultiBatchProcessor",
    need_grad_update=True,
    loss_collector=collect_loss_by_regex("^.*loss.*"),
)
val_batch_processor = dict(type="MultiBatchProcessor", need_grad_update=False)
val_metric = dict(type=TopOne)
val_metric_updater = dict(
    type="MetricUpdater",
    metrics=[val_metric],
    metric_update_func=update_metric,
    step_log_freq=10000,
    log_prefix="Validation digits",
)


def validation(converters=None):
    return dict(
        type="Validation",
        data_loader=val_data_loader,
        batch_processor=val_batch_processor,
        callbacks=[val_metric_updater],
        model_convert_pipeline=converters,
    )


ckpt_callback = dict(
    type="Checkpoint",
    save_dir=ckpt_dir,
    name_prefix=training_step + "-",
    strict_match=True,
    mode="max",
    monitor_metric_key="Acc",
)
stat_callback = dict(type="StatsMonitor", log_freq=20)

float_trainer = dict(
    type="distributed_data_parallel_trainer",
    model=model,
    data_loader=data_loader,
    optimizer=dict(
        type=torch.optim.SGD,
        params={"weight": dict(weight_decay=5e-4)},
        lr=0.05,
        momentum=0.9,
    ),
    batch_processor=batch_processor,
    num_epochs=num_epochs,
    device=None,
    callbacks=[
        stat_callback,
        dict(type="CosLrUpdater", warmup_len=20, step_log_interval=100),
        validation(),
        ckpt_callback,
    ],
    sync_bn=True,
    train_metrics=dict(type="LossShow"),
)

qat_trainer = dict(
    type="distributed_data_parallel_trainer",
    model=model,
    model_convert_pipeline=dict(
        type="ModelConvertPipeline",
        qat_mode="fuse_bn",
        converters=[
            dict(
                type="LoadCheckpoint",
                checkpoint_path=os.path.join(ckpt_dir, "float-checkpoint-best.pth.tar"),
            ),
            dict(type="Float2QAT"),
        ],
    ),
    data_loader=data_loader,
    optimizer=dict(type=torch.optim.SGD, lr=0.005, momentum=0.9),
    batch_processor=batch_processor,
    num_epochs=2,
    device=None,
    callbacks=[
        stat_callback,
        validation([dict(type="QAT2Quantize")]),
        ckpt_callback,
    ],
)

int_infer_trainer = dict(
    type="Trainer",
    model=model,
    model_convert_pipeline=dict(
        type="ModelConvertPipeline",
        qat_mode="fuse_bn",
        converters=[
            dict(type="Float2QAT"),
            dict(
                type="LoadCheckpoint",
                checkpoint_path=os.path.join(ckpt_dir, "qat-checkpoint-best.pth.tar"),
                allow_miss=True,
                ignore_extra=True,
            ),
            dict(type="QAT2Quantize"),
        ],
    ),
    data_loader=None,
    optimizer=None,
    batch_processor=None,
    num_epochs=0,
    device=None,
    callbacks=[
        validation(),
        dict(
            type="SaveTraced",
            save_dir=ckpt_dir,
            trace_inputs={"img": torch.zeros(1, 1, 8, 8)},
            name_prefix="int_infer-",
            save_hash=False,
        ),
    ],
)
