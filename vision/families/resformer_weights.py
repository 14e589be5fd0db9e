"""ResFormer's files (arXiv 2212.00776, MIT) have no address of their own: the authors' page,
https://github.com/ruitian12/resformer, links to folders of Google Drive. One that was fetched by hand holds its tensors
under `model` and loads with `create_model(name, checkpoint_path=…)`. Top-1 in percent by test size, as reported:

    model, training sizes       96     128    160    224    384    512
    T, 128 160 224              61.40  67.78  71.09  73.85  75.04  73.77
    S, 128 160 224              73.59  78.24  80.39  82.16  82.72  82.00
    S, 128 224 384              72.92  77.84  80.09  82.28  83.70  83.86
    B, 128 160 224              75.86  79.74  81.52  82.72  83.29  82.63
"""

from ..published import Weights

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
