"""The features in which samples are compared with data: one stated network for a whole comparison.

| data  | features                                                                               |
|-------|----------------------------------------------------------------------------------------|
| image | 64 of a small network fitted on the training data: a classifier where there are labels  |
|       | of 5 classes or more, otherwise one that tells how an image was turned or spoilt       |
| table | at most 64 random Fourier features of its columns at several scales; fewer of small     |
|       | tables, since a Fréchet distance needs more examples than features                     |
| text  | 64 principal components of the frequencies of runs of 1 to 3 symbols                    |
| audio | 64 principal components of log-spectra, their mean and spread over time                 |

All are centred and then scaled by one number, so that on the training data their variance is 1 on
average. The standard Inception network is `inception_features`, where torch-fidelity is installed. What
a user names is looked up in `FEATURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.data import Data, Split, load_data
from fivefold.errors import DataError, FeatureError
from fivefold.files import replacing
from fivefold.machine import fastest_threads, using
from fivefold.space import AUDIO_OFFSET, Space
from fivefold.system import seeded
from fivefold.tools.metrics import distances, principal_components, spread
from fivefold.tools.scaling import centre

WIDTH = 64
FITTED_ON = 5000  # training examples, at most, that components and scales are fitted on
STEPS, BATCH = 300, 128  # of the image networks: 2 s on 8x8 images
CLASSES = 5  # with fewer a classifier sees too little: one of two photographs' patches is blind to blur

State = dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """A named map from encoded examples `(B, *shape)` to features `(B, D)`."""

    name: str
    function: Callable[[Tensor], Tensor]
    distance: str = "Fréchet distance"  # what the Fréchet distance of these features is called

    def __call__(self, x: Tensor, batch_size: int = 500) -> Tensor:
        """Float64 features `(B, D)`, on the CPU."""
        with torch.no_grad():
            return torch.cat([self.function(part.cpu()).double() for part in x.split(batch_size)])

    def of(self, split: Split, most: int, batch_size: int = 500) -> Tensor:
        """Features of at most `most` examples evenly spread over a split, read a batch at a time."""
        index = spread(torch.arange(len(split)), most)
        return torch.cat([self(split.batch(part).x) for part in index.split(batch_size)])


def fit_features(data: Data, path: str | Path | None = None) -> Features:
    """The features of this kind of data, fitted on its training split; the same for the same data.

    Args:
        data: what is compared.
        path: a file (`features.safetensors`) that keeps them, so that one comparison uses one network;
            made where it does not exist.

    Raises:
        FeatureError: the file is damaged or of other data.
    """
    kind = _KINDS[data.space.kind]
    path = None if path is None else Path(path)
    if path is not None and path.exists():
        name, state = _load(path, data.fingerprint)
    elif data.train in _FITTED:
        name, state = _FITTED[data.train]
    else:
        with seeded(0):
            name, state = kind.fit(data)
        raw = Features(name, kind.apply(data.space, state))(data.train.spread(FITTED_ON).x)
        state |= {"all.centre": raw.mean(0), "all.scale": raw.var(0).mean().sqrt().clamp(min=1e-12)}
    if path is not None and not path.exists():
        _save(path, state, {"name": name, "fingerprint": data.fingerprint})
    _FITTED[data.train] = name, state
    return _standardised(name, kind, data.space, state)


# By the training split, as long as it is held: trials of one tuning ask again and again.
_FITTED: WeakKeyDictionary[Split, tuple[str, State]] = WeakKeyDictionary()


def _standardised(name: str, kind: _Kind, space: Space, state: State) -> Features:
    raw = kind.apply(space, state)
    return Features(name, lambda x: (raw(x).double() - state["all.centre"]) / state["all.scale"])


def _save(path: Path, state: State, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata)


def _load(path: Path, fingerprint: str) -> tuple[str, State]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FeatureError(f"{path} is damaged or not fivefold's ({error}); remove it to fit it again") from error
    if metadata.get("fingerprint") != fingerprint:
        raise FeatureError(f"{path} was fitted on other data; remove it to fit it again")
    return metadata["name"], state


class _Kind(NamedTuple):
    """How one kind of data gets its features: `fit` names them and makes the state that `apply` uses."""

    fit: Callable[[Data], tuple[str, State]]
    apply: Callable[[Space, State], Callable[[Tensor], Tensor]]


# --- images -----------------------------------------------------------------------------------------


class ImageNetwork(nn.Module):
    """Convolutions down to 4x4, then `WIDTH` features: `(B, C, side, side)` to `(B, WIDTH)`."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 32
        if side <= 16:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
            channels = width
        while side > 4:
            width = min(2 * width, 64) if layers else width
            layers += [nn.Conv2d(channels, width, 3, 2, padding=1), nn.SiLU()]
            channels, side = width, (side + 1) // 2
        self.body = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, WIDTH), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _side(space: Space) -> int:
    """Images are averaged down to squares of at most 64 pixels a side before the network sees them."""
    return min(*space.shape[1:], 64)


def _pixels(x: Tensor, space: Space) -> Tensor:
    return F.adaptive_avg_pool2d(centre(x, space), _side(space))


def _fit_image(data: Data) -> tuple[str, State]:
    space, labelled = data.space, _labels(data)
    network = ImageNetwork(space.shape[0], _side(space))
    if labelled is None:
        _train(network, len(_SPOILT), lambda index: _spoil(_pixels(data.train.batch(index).x, space)), len(data.train))
        name = f"{WIDTH} features of a network fitted on the training data to tell how an image was turned or spoilt"
    else:
        labels, classes = labelled
        _train(network, classes, lambda index: (_pixels(data.train.batch(index).x, space), labels[index]), len(labels))
        name = f"{WIDTH} features of a classifier fitted on the training data"
    return name, network.state_dict()


def _labels(data: Data) -> tuple[Tensor, int] | None:
    """Class of each training example and the number of classes, where the data have labels of enough classes."""
    condition = data.space.condition
    if condition is None and data.source:
        try:
            labelled = load_data(data.source, **{**data.arguments, "condition": "label"})
        except DataError:
            return None
        if not torch.equal(labelled.train.spread(100).x, data.train.spread(100).x):
            return None
        data, condition = labelled, labelled.space.condition
    if condition is None or data.train.condition is None or [c.kind for c in condition.columns] != ["categorical"]:
        return None
    classes = condition.columns[0].levels or 0
    return (data.train.condition.flatten().long(), classes) if classes >= CLASSES else None


def _train(network: ImageNetwork, classes: int, batch: Callable[[Tensor], tuple[Tensor, Tensor]], size: int) -> None:
    """Cross-entropy, `STEPS` steps; smoothed labels and dropout keep it from learning the examples by heart."""
    head = nn.Linear(WIDTH, classes)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    with seeded(0):  # draws nothing of what follows
        some = batch(torch.arange(min(BATCH, size)))[0]
    with using(fastest_threads(lambda: network(some).sum().backward())[0]):
        for _ in range(STEPS):
            x, y = batch(torch.randint(size, (min(BATCH, size),)))
            loss = F.cross_entropy(head(F.dropout(network(x), 0.2)), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


_SPOILT: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: x.rot90(1, (2, 3)),  # rotations as in Gidaris et al. 2018
    lambda x: x.rot90(2, (2, 3)),
    lambda x: x.rot90(3, (2, 3)),
    lambda x: x + 0.3 * torch.randn_like(x),  # and what generative models do wrong
    _blur,
    lambda x: x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3)),
)


def _spoil(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each image turned or spoilt in one way, and which."""
    parts = [spoil(part) for spoil, part in zip(_SPOILT, x.tensor_split(len(_SPOILT)), strict=True)]
    way = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    return torch.cat(parts), way


def _apply_image(space: Space, state: State) -> Callable[[Tensor], Tensor]:
    network = ImageNetwork(space.shape[0], _side(space)).eval()
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("all.")})
    return lambda x: network(_pixels(x, space))


# --- tables, text, audio ----------------------------------------------------------------------------


def gaps_shown(x: Tensor, space: Space) -> Tensor:
    """Missing numbers of a table as the mean, and after the columns one of 0 and 1 for each that may be missing."""
    lacking = [i for i, column in enumerate(space.columns) if column.missing]
    return torch.cat([x.nan_to_num(0.0), x[:, lacking].isnan().to(x.dtype)], 1) if lacking else x


def _columns(x: Tensor, space: Space) -> Tensor:
    """Categorical columns as one-hot, the others as they are, with `gaps_shown`: `(B, D)`."""
    x = gaps_shown(x, space)
    parts = [
        F.one_hot(x[:, i].long(), column.levels) if column.kind == "categorical" and column.levels else x[:, i, None]
        for i, column in enumerate(space.columns)
    ]
    return torch.cat([*(part.double() for part in parts), x[:, len(space.columns) :].double()], 1)


SCALES = 5  # of random Fourier features, from a near neighbour's distance to that of any two rows
NEAR = 5  # the neighbour
SPARE = 2  # examples to a feature, at least, in the smaller of the splits that are compared
SHRUNK = 1e-2  # of the mean variance is added to that of each principal direction before it is whitened


def _fit_table(data: Data) -> tuple[str, State]:
    """Random Fourier features (Rahimi & Recht 2007): cosines and sines of random directions, half of them in columns
    that are standardised and half in whitened ones, where a law of columns that nearly determine one another shows.

    Means and covariances of cosines are characteristic functions, which Gaussians of the same moments do not share.
    """
    x = _columns(data.train.spread(FITTED_ON).x, data.space)
    x = x - x.mean(0)
    deviation = x.std(0)
    scale = torch.where(_numeric(data.space) & (deviation > 0), deviation, 1.0)
    spectrum = torch.linalg.eigh(torch.cov((x / scale).T).view(x.shape[1], -1))
    variances = spectrum.eigenvalues.clamp(min=0) + SHRUNK * spectrum.eigenvalues.mean().clamp(min=1e-12)
    bases = (
        torch.eye(x.shape[1], dtype=x.dtype) / scale[:, None],
        spectrum.eigenvectors / variances.sqrt() / scale[:, None],
    )
    count = max(min(WIDTH, min(len(data.train), len(data.test)) // SPARE) // 2, 2)
    frequencies = [
        basis @ _frequencies(x @ basis, part)
        for basis, part in zip(bases, (count - count // 2, count // 2), strict=True)
    ]
    name = f"{2 * count} random Fourier features of the table's columns at {SCALES} scales"
    return name, {"frequencies": torch.cat(frequencies, 1)}


def _numeric(space: Space) -> Tensor:
    """Which of `_columns` are numbers."""
    widths = [column.levels or 1 if column.kind == "categorical" else 1 for column in space.columns]
    number = [column.kind != "categorical" for column in space.columns]
    lacking = sum(column.missing for column in space.columns)
    return torch.tensor(number + [False] * lacking).repeat_interleave(torch.tensor(widths + [1] * lacking))


def _frequencies(x: Tensor, count: int) -> Tensor:
    """Gaussian, of `x` `(N, D)`, `(D, count)`; the scales in turn."""
    apart = distances(points := spread(x, 1000), points)
    apart = apart.masked_fill(apart == 0, torch.inf)
    far = apart[apart.isfinite()].median() if apart.isfinite().any() else torch.ones((), dtype=x.dtype)
    near = torch.minimum(apart.kthvalue(min(NEAR, len(points)), dim=1).values.median(), far).clamp(min=far / 32)
    share = torch.linspace(0, 1, SCALES, dtype=x.dtype)[torch.arange(count) % SCALES]
    return torch.randn(x.shape[1], count, dtype=x.dtype) / (near ** (1 - share) * far**share)


def _apply_table(space: Space, state: State) -> Callable[[Tensor], Tensor]:
    def features(x: Tensor) -> Tensor:
        phase = _columns(x, space) @ state["frequencies"]
        return torch.cat([phase.cos(), phase.sin()], 1)

    return features


BUCKETS = 1024  # that runs of characters of each length are hashed into


def _character_runs(x: Tensor, space: Space) -> Tensor:
    """Root frequencies of hashed runs of 1, 2 and 3 symbols of text, `(B, 3 BUCKETS)`."""
    lengths = range(1, min(3, x.shape[1]) + 1)
    counts = []
    for length in lengths:
        runs = x.long().unfold(1, length, 1)
        key = (runs * torch.tensor([1, 7919, 104729])[:length]).sum(-1) % BUCKETS
        counts.append(torch.zeros(len(x), BUCKETS).scatter_add_(1, key, torch.ones(key.shape)) / key.shape[1])
    return torch.cat(counts, 1).sqrt()


def _log_spectra(x: Tensor, space: Space) -> Tensor:
    """Mean and standard deviation over half-overlapping Hann windows of ln(power), `(B, 2 (size / 2 + 1))`."""
    size = min(256, x.shape[1])
    frames = ((x.float() - AUDIO_OFFSET) / AUDIO_OFFSET).unfold(1, size, max(size // 2, 1))
    power = torch.fft.rfft(frames * torch.hann_window(size)).abs().square()
    log_power = torch.log(power + 1e-6)
    return torch.cat([log_power.mean(1), log_power.std(1, correction=0)], 1)


def _components(raw: Callable[[Tensor, Space], Tensor], name: str) -> _Kind:
    """Principal components of `raw` features."""

    def fit(data: Data) -> tuple[str, State]:
        mean, basis = principal_components(raw(data.train.spread(FITTED_ON).x, data.space), WIDTH)
        return f"{basis.shape[1]} principal components of {name}", {"mean": mean, "basis": basis}

    def apply(space: Space, state: State) -> Callable[[Tensor], Tensor]:
        return lambda x: (raw(x, space).double() - state["mean"]) @ state["basis"]

    return _Kind(fit, apply)


_KINDS = {
    "image": _Kind(_fit_image, _apply_image),
    "table": _Kind(_fit_table, _apply_table),
    "text": _components(_character_runs, "the frequencies of runs of 1 to 3 symbols"),
    "audio": _components(_log_spectra, "log-spectra"),
}


# --- the standard network ---------------------------------------------------------------------------


def inception_features(space: Space, weights: str | Path | None = None) -> Features:
    """The 2,048 features of the Inception network that the Fréchet Inception distance is defined by.

    Args:
        space: of images; one channel is repeated thrice, levels are scaled to 0..255.
        weights: path of torch-fidelity's weights; None downloads them.

    Raises:
        FeatureError: the data are not images, torch-fidelity is not installed, or the weights cannot be had.
    """
    if space.kind != "image" or space.shape[0] not in (1, 3) or space.levels is None:
        raise FeatureError(f"Inception sees images of 1 or 3 channels of whole numbers, not {space.describe()}")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise FeatureError("Inception features need torch-fidelity: pip install 'fivefold[inception]'") from error
    path = None if weights is None else str(weights)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path).eval()
    except Exception as error:  # the library raises whatever its download or its unpickling does
        source = f"from {path}" if path else "by download; give their path instead"
        raise FeatureError(f"cannot load the Inception weights {source}: {error}") from error

    def features(x: Tensor) -> Tensor:
        pixels = ((centre(x, space) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return network(pixels.expand(-1, 3, -1, -1))[0]

    return Features("2048 features of the Inception network", features, "FID")


def named_features(name: str, data: Data, path: str | Path | None = None) -> Features:
    """The features that a person names: `fitted`, `inception`, or `inception:WEIGHTS`.

    Args:
        name: of `FEATURES`, with a path after a colon where it needs one.
        data: what is compared.
        path: the file that keeps fitted ones.

    Raises:
        FeatureError: there is no such network, or it cannot be had.
    """
    kind, _, given = name.partition(":")
    if kind not in FEATURES:
        raise FeatureError(f"no features {kind!r}: choose one of {', '.join(FEATURES)}")
    return FEATURES[kind](data, given or (path if kind == "fitted" else None))


FEATURES: dict[str, Callable[[Data, str | Path | None], Features]] = {  # by name; the path is of the file they are in
    "fitted": fit_features,
    "inception": lambda data, path: inception_features(data.space, path),
}
