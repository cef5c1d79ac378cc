"""SST-2 from 100 labels, and the other 2,514 sentences of the pool without theirs.

python train.py --config configs/semi.py:soft --data.source=../shared/data \
    --encoder.pretrained=../shared/models/all-MiniLM-L6-v2
python benchmarks/semi.py --source=../shared/data --pretrained=../shared/models/all-MiniLM-L6-v2

After the colon: `labelled` (the 100 alone), `self-training` (the sure answers of the moving average
of the parameters, for texts as they are), `consistency` (for texts with words masked, and replaced
by others of which the lexicons say the same), `soft` (likewise, with distributions in the place of
sure answers), or `mlm` (masked language modelling of the other sentences). All have the same number
of updates on the same labels; --knowledge.row=none is each of them without the graph, and then
without words replaced.
"""

import dataclasses
from pathlib import Path

from keft_jax.config import Config, ConsistencyConfig, MlmConfig, ObjectiveConfig
from keft_jax.options import load_config_file

OBJECTIVES = {
    "labelled": ObjectiveConfig(),
    "self-training": ObjectiveConfig(
        consistency=ConsistencyConfig(weight=1.0, threshold=0.95, mask=0.0)
    ),
    "consistency": ObjectiveConfig(
        consistency=ConsistencyConfig(weight=1.0, threshold=0.95, mask=0.15, swap=0.3)
    ),
    "soft": ObjectiveConfig(
        consistency=ConsistencyConfig(
            weight=1.0, labels="soft", threshold=0.0, temperature=0.7, mask=0.15, swap=0.3
        )
    ),
    "mlm": ObjectiveConfig(mlm=MlmConfig(weight=0.1)),
}


def get_config(arg: str = "soft") -> Config:
    base = load_config_file(f"{Path(__file__).with_name('sst2.py')}:100")
    unlabelled = 0 if arg == "labelled" else 24
    return dataclasses.replace(
        base,
        name=f"semi-{arg}",
        data=dataclasses.replace(base.data, unlabelled="rest" if unlabelled else ""),
        objective=OBJECTIVES[arg],
        # What a text without labels is to agree with is the sum of both.
        fusion=dataclasses.replace(base.fusion, trains="by_turns"),
        optim=dataclasses.replace(
            base.optim,
            steps=200,
            unlabelled=unlabelled,
            ema=0.98 if OBJECTIVES[arg].consistency.weight else 0.0,
        ),
        eval=dataclasses.replace(base.eval, every=100),
    )
