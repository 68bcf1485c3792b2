"""Data sources, and the stream of batches that resumes at any step."""

from wavemamba.data.base import ExampleSource, Findings, Part, Source, StreamedSource, hold_out
from wavemamba.data.encoding import encode_source
from wavemamba.data.lanes import UnreadableRowWarning
from wavemamba.data.latent_writer import LatentShardWriter
from wavemamba.data.picture_source import PictureSource
from wavemamba.data.pictures import PictureView
from wavemamba.data.registry import open_source, register_source, source_kinds
from wavemamba.data.sources.digits import Digits
from wavemamba.data.sources.hf_datasets import HuggingFaceDataset
from wavemamba.data.sources.hf_stream import HuggingFaceStream
from wavemamba.data.sources.image_folder import ImageFolder
from wavemamba.data.sources.latent_shards import LatentShards
from wavemamba.data.sources.webdataset import TarShards
from wavemamba.data.stream import Batches, ExampleStream, StepBatches, collate, slices_of_batch
from wavemamba.data.verify import LOOKS, thorough_look, verified, without_faults

__all__ = [
    "LOOKS",
    "Batches",
    "Digits",
    "ExampleSource",
    "ExampleStream",
    "Findings",
    "HuggingFaceDataset",
    "HuggingFaceStream",
    "ImageFolder",
    "LatentShardWriter",
    "LatentShards",
    "Part",
    "PictureSource",
    "PictureView",
    "Source",
    "StepBatches",
    "StreamedSource",
    "TarShards",
    "UnreadableRowWarning",
    "collate",
    "encode_source",
    "hold_out",
    "open_source",
    "register_source",
    "slices_of_batch",
    "source_kinds",
    "thorough_look",
    "verified",
    "without_faults",
]
