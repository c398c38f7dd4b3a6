# %% [markdown]
# # A run from a notebook
#
# Open this file in an editor that knows cells (VS Code, PyCharm, JupyterLab with jupytext), or run it as a script from
# the repository's root. By default it runs the demo: no key, no GPU, twelve minutes on two cores. `LION_RAY_EXAMPLE`
# names another configuration; the tests run the cells on a tiny one.

# %%
import os

from lion_ray import LionError, Tracker, distil, open_run

CONFIG = os.environ.get("LION_RAY_EXAMPLE", "configs/demo.yaml")


# %% [markdown]
# A tracker hears of the run while it goes on. It needs only the methods that it is to hear of (docs/tracking.md).


# %%
class Curve(Tracker):
    """Keeps the loss of every step, and prints what each iteration came to."""

    def __init__(self):
        self.losses = {}

    def step(self, step):
        self.losses[step.number] = step.metrics["loss"]

    def iteration(self, result):
        print(result.sentence())


curve = Curve()

# %% [markdown]
# The same cell runs and resumes: interrupt it, and run it again. A mistake is one line, as on the command line.

# %%
try:
    distil(CONFIG, overrides=["imitation.epoch=2"])
except LionError as error:
    print("not a run:", error)

result = distil(CONFIG, trackers=[curve])

# %% [markdown]
# What came out. Tables are pyarrow's; `.to_pandas()` makes DataFrames of them.

# %%
print(result.table().to_pandas().T)
print(f"{len(curve.losses)} steps; the loss went from {curve.losses[1]:.3f} to {curve.losses[max(curve.losses)]:.3f}")

# %%
heldout = result.heldout()
for row in heldout.slice(0, 3).to_pylist():
    print(row["instruction"], "\n  teacher:", row["teacher"], "\n  student:", row["student"])

# %%
generated = result.pool(1).to_pandas()
print(generated[["source", "text"]].to_string(max_colwidth=60))

# %% [markdown]
# The checkpoint is a folder that transformers and vLLM read. A run can be opened again at any time, also while it goes
# on elsewhere.

# %%
print("checkpoint", result.checkpoint)
print(open_run(result.root).status().sentence())
