"""What `parebench --help` prints. Hydra's own listing of groups takes a second, this one reads folder names."""

from pathlib import Path

import conf
import sweeps

CONF = Path(conf.__file__).parent
GROUPS = ("method", "model", "task", "budget", "compute", "tracker", "sweeps")
TEXT = """\
parebench: train, prune and compress language models with the techniques of the literature, on equal terms

  launch a sweep       parebench -m +sweeps=quickstart
                       parebench -m method=lora,bitfit seed=0,1 hydra.launcher.workers=2
  run one cell         parebench method=lora method.r=4 model=minilm task=glue/sst2 data_dir=<folder>
  regenerate a table   parebench-report table quickstart      (and: page, params)
  fetch data, models   parebench-prefetch quickstart

Choose one of each group with group=name (with -m several: group=a,b):

{groups}

Override any value with key=value; parebench --cfg job method=lora prints all keys and values.
recipe.lr=1e-3 replaces what the method's recipe says; run.store=<folder> is where results go.
method.r='${{match_params:300k}}' (or match_bytes:1.2M) solves for the value whose parameters or bytes are nearest and not above.
protocols=[wikitext2,commonsense/piqa] measures the model on more tasks; a finished cell is not trained again for that.
forgetting=[wikitext2] measures them before training too, and tables show the change.
A sweep of your own: <folder>/sweeps/<name>.yaml beginning with '# @package _global_', then --config-dir <folder> -m +sweeps=<name>.
Exit codes: 0 done, 1 a cell failed, 2 bad input, 130 interrupted. Flags of Hydra: parebench --hydra-help
"""


def text() -> str:
    """The help, with every name that can be chosen."""
    return TEXT.format(groups="\n".join(f"  {'+' if group == 'sweeps' else ''}{group}: {', '.join(options(group))}" for group in GROUPS))


def options(group: str) -> list[str]:
    """The names of a configuration group, `glue/sst2` for nested ones."""
    folder = Path(sweeps.__file__).parent if group == "sweeps" else CONF / group
    files = folder.glob("*.yaml") if group == "sweeps" else folder.rglob("*.yaml")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)
