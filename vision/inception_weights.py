"""Where the network of the reference FID is published: converted from TensorFlow's graph of 2015-12-05."""

from .published import HALF, Weights

SIDE = 299
WEIGHTS = Weights(
    tag="fid_2015",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    license="apache-2.0",
    num_classes=1008,
    input_size=(3, SIDE, SIDE),
    mean=HALF,
    std=HALF,
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="squash",
    sha256="6726825d",
)
