"""Tucker decomposition of convolutions, and truncated SVD of matrices."""

from onnxcompress.passes.tucker.decomposition import TuckerConfig, TuckerDecomposition
from onnxcompress.passes.tucker.spec import RankSpec, parse_svd_spec, parse_tucker_spec
from onnxcompress.passes.tucker.svd import SvdConfig, SvdDecomposition
from onnxcompress.passes.tucker.verify import verify_splits

__all__ = [
    "RankSpec",
    "SvdConfig",
    "SvdDecomposition",
    "TuckerConfig",
    "TuckerDecomposition",
    "parse_svd_spec",
    "parse_tucker_spec",
    "verify_splits",
]
