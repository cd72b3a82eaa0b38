"""What a training script calls while it runs inside a job. Standard library only.

    from condorctl.job import checkpoint, progress, result, save

    state = checkpoint.load(read=torch.load) or {"epoch": 0, "model": fresh()}
    for epoch in range(state["epoch"] + 1, epochs + 1):
        loss = train_one_epoch(state["model"])
        state["epoch"] = epoch
        progress(epoch=epoch, epochs=epochs, loss=loss)
        checkpoint.save(write=lambda path: torch.save(state, path), epoch=epoch)
    save("model.pt", write=lambda path: torch.save(state["model"], path), epoch=epochs)
    result(clean=0.99, pgd20=0.87)

`records` is what a job says of itself, `checkpoint` what it goes on from after it was stopped.
Outside a pool the same script just runs.
"""

from condorctl.job import checkpoint
from condorctl.job.records import METRICS_FILE, check_result, progress, result, save

__all__ = ["METRICS_FILE", "check_result", "checkpoint", "progress", "result", "save"]
