"""Tucker-2, truncated SVD and rank rules: arrays in, arrays out, no ONNX."""

from onnxcompress.linalg.ranks import Evbmf, energy_rank, evbmf, ratio_rank
from onnxcompress.linalg.spectrum import Spectrum, left_spectrum
from onnxcompress.linalg.svd import TruncatedSvd, short_side_spectrum, truncated_svd
from onnxcompress.linalg.tucker import KernelSpectra, Tucker2, kernel_spectra, tucker2

__all__ = [
    "Evbmf",
    "KernelSpectra",
    "Spectrum",
    "TruncatedSvd",
    "Tucker2",
    "energy_rank",
    "evbmf",
    "kernel_spectra",
    "left_spectrum",
    "ratio_rank",
    "short_side_spectrum",
    "truncated_svd",
    "tucker2",
]
