"""The backends: one module each, with the ops of `capscore.ops`, `CapsNet`, `Learner` and `load`."""
