"""The one trainer, which pre-training and post-training share.

The caller has a network (what is trained and saved) and a loss module around it, which takes the
inputs of a part of a batch and returns its mean loss, or a pair: the loss and a dict of numbers to
report. The trainer does the rest:

    with join_processes(options.use_gpu) as process:  # alone, or under torchrun
        optimizer = partial(make_optimizer, network, lr=…, weight_decay=…, eps=…)
        trainer = TrainerCore(recipe, process, network, loss, optimizer, kept=folder / "model.pt")
        extra = load_progress(trainer, folder, settings, {"best"})  # with --resume; sets the step
        step = trainer.update([Part(inputs, count), …])   # Step(loss, norm, metrics)
        evaluation = trainer.evaluate([Part(inputs, count), …])
        save_progress(trainer, folder, settings, best=…)  # atomic

- core.py: Recipe (learning rates, clipping, precision; any object with its fields will do, as
  PretrainOptions), Part, TrainerCore. The parts of a batch are weighted by `count`, their number of
  targets (tokens, pairs), over all parts and processes, so that accumulation and several processes
  follow the trajectory of one batch. A loss that is not finite, and a part without a target, are
  ValueErrors of one line; the weights are then those of the step before. A parameter group may
  have "lr_scale". Dropout is seeded by (seed, step, rank).
- schedule.py: learning_rate.  progress.py: what --resume needs, and what it refuses.
- loop.py: run_loop, the steps with bar, metrics, evaluations and signals.
- log.py: metrics.jsonl, loss.png, TensorBoard.  folder.py: what a run's folder may hold.
- processes.py: torchrun, DDP, FSDP2, signals.  model_folder.py: a model in Hugging Face's form.
"""
