"""A plain PyTorch loop: the output layer and the loss in one call, which never holds all logits.

python examples/plain_loop.py
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from shaping import Objective, linear_shaped_cross_entropy

torch.manual_seed(0)
text = torch.tensor(list(Path(argparse.__file__).read_bytes()[: 64 * 512])).reshape(-1, 64)  # the tokens are bytes
embedding, layer, head = nn.Embedding(256, 64), nn.GRU(64, 64, batch_first=True), nn.Linear(64, 256)
parameters = [*embedding.parameters(), *layer.parameters(), *head.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
objective = Objective.named("precision")

for step in range(40):
    rows = text[torch.randint(len(text), (16,))]
    hidden_states, _ = layer(embedding(rows[:, :-1]))
    loss, statistics = linear_shaped_cross_entropy(
        hidden_states, head.weight, rows[:, 1:], objective, bias=head.bias, return_stats=True
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == 39:
        entropy, head_mass = statistics.entropy.mean().item(), statistics.head_mass.mean().item()
        print(f"step {step:2d}  loss {loss.item():.3f}  entropy {entropy:.3f} nats  head mass {head_mass:.3f}")
