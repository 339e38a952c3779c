"""Mini-batches per second through Lightning, as users run it, compared with the same steps in a bare loop.

    python benchmarks/training.py [--rounds 5] [--batch-size 50] [--threads 1] [--quick]

Both train GRU4REC (H = 100, one-hot, TOP1 on softmax scores, row-wise Adagrad) on the default synthetic data, the
Lightning side with its logger, metrics.csv. Rounds are interleaved; medians and their ratio are printed.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, Trainer

from arnn_lightning.config import instantiate
from workloads import Contestant, Workload, interleave, machine, make_parser, make_workload, parse

QUICK_DATA = ["data.generate.events=20000"]


class EpochTimer(Callback):
    """Seconds of the last epoch, without the Trainer's start."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def lightning(workload: Workload, epochs: int = 1) -> float:
    """Seconds of the last epoch inside Trainer.fit, without validation."""
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=[instantiate(logger, save_dir=folder) for logger in workload.config.logger.values()],
            log_every_n_steps=1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[timer],
        )
        trainer.fit(workload.model, datamodule=workload.data)
    return timer.seconds


def bare_loop(workload: Workload) -> float:
    """Seconds of one epoch of the model's steps."""
    model, data = workload.model, workload.data
    model.configure_optimizers()
    dataset = data.train_dataset(model.chunk_spec)
    model.train()
    started = time.perf_counter()
    state = model.initial_state(data.batch_size)
    for chunk in range(len(dataset)):
        _, state = model.run_steps(dataset[0, chunk], state)
    return time.perf_counter() - started


def contestants(batch_size: int, overrides: Sequence[str]) -> tuple[dict[str, Contestant], int]:
    """Lightning and the bare loop, each with a new model every time, and the mini-batches of an epoch."""

    def workload() -> Workload:
        settings = ["model=gru4rec", f"model.batch_size={batch_size}", "model.n_sample=0", "logger=csv"]
        return make_workload(*settings, *overrides)

    runs = {"bare loop": lambda: bare_loop(workload()), "Lightning": lambda: lightning(workload())}
    return runs, workload().n_steps


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--overrides", nargs="*", default=[], help="of the config")
    options = parse(parser, arguments, overrides=QUICK_DATA)
    runs, n_steps = contestants(options.batch_size, options.overrides)
    seconds = interleave(runs, options.rounds)
    print(machine())
    print(f"GRU4REC, H = 100, B = {options.batch_size}: {n_steps} mini-batches an epoch, {options.rounds} rounds")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:12} {n_steps / median:8.0f} mini-batches/s  ({1e3 * median / n_steps:.3f} ms each)")
    ratios = [a / b for a, b in zip(seconds["Lightning"], seconds["bare loop"], strict=True)]
    print(f"Lightning / bare loop: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
