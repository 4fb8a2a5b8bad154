"""The network behind the LSTM autoencoder. The only module that imports PyTorch and Lightning."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

# One: steps are too small to share, and on a busy machine two threads spent 17 times the time waiting for each other.
THREADS = 1


class SequenceAutoencoder(lightning.LightningModule):
    """An LSTM reads a sequence into a short code; another writes it back, newest step first.

    Args:
        n_features: columns of one step.
        hidden_size: units of both LSTMs.
        code_size: numbers that the sequence is squeezed into.
        learning_rate: of Adam.

    Source: Malhotra et al. (2016), "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection", arXiv:1607.00148.
    """

    def __init__(self, n_features: int, hidden_size: int, code_size: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.encoder = nn.LSTM(2 * n_features, hidden_size, batch_first=True)
        self.code = nn.Linear(hidden_size, code_size)
        self.decoder = nn.LSTM(code_size, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, n_features)

    def forward(self, steps: Tensor, known: Tensor, n_out: int) -> Tensor:
        """The newest `n_out` steps as written back from the code, newest first.

        Args:
            steps: float32, shape (n, n_steps, n_features), oldest first, zero where unknown.
            known: same shape, 1 where a value is known; a step before an account's first is unknown throughout.
            n_out: how many steps to write back.

        Returns:
            Shape (n, n_out, n_features).
        """
        _, (hidden, _) = self.encoder(torch.cat([steps, known], dim=-1))
        code = torch.tanh(self.code(hidden[-1]))
        written, _ = self.decoder(code.unsqueeze(1).expand(-1, n_out, -1))
        out: Tensor = self.output(written)
        return out

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Mean squared error over the known values of all steps."""
        steps, known = batch
        error = (self(steps, known, steps.shape[1]) - steps.flip(1)) ** 2 * known.flip(1)
        loss: Tensor = error.sum() / known.sum().clamp(min=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at a constant rate."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def trained(
    steps: NDArray[np.float32],
    known: NDArray[np.float32],
    *,
    hidden_size: int,
    code_size: int,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, NDArray[np.float32]]:
    """Weights, by name, of a network trained on whole sequences; on one machine, one seed gives one set of weights.

    Args:
        steps: shape (n, n_steps, n_features).
        known: same shape, 1 where a value is known.
        hidden_size: units of each LSTM.
        code_size: length of the code.
        learning_rate: of Adam.
        epochs: passes over all sequences.
        batch_size: sequences per step.
        seed: of the first weights and of the order of batches.
    """
    with _reproducible(seed):
        network = SequenceAutoencoder(steps.shape[2], hidden_size, code_size, learning_rate)
        data = TensorDataset(torch.from_numpy(steps), torch.from_numpy(known))
        order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
        # Whole batches are cut from the tensors at once; one by one, collating costs more than the LSTM.
        loader = DataLoader(data, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(network, loader)
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Fixed seed, threads and algorithms inside the block; the caller's own state afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    talkative = logging.getLogger("pytorch_lightning")
    level = talkative.level
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Lightning advises more workers and a GPU; neither keeps results reproducible here.
            warnings.simplefilter("ignore")
            talkative.setLevel(logging.ERROR)
            torch.manual_seed(seed)
            torch.set_num_threads(THREADS)
            torch.use_deterministic_algorithms(True)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        talkative.setLevel(level)
