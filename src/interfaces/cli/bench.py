"""`smallgpt bench`: how fast and how large, next to others, in one run."""

from cyclopts import App

from smallgpt.interfaces.cli.bench_generate import generate
from smallgpt.interfaces.cli.bench_operations import attention, cross_entropy, layer_norm
from smallgpt.interfaces.cli.bench_scaling import scaling
from smallgpt.interfaces.cli.bench_train import train

ABOUT = """Measure speed and memory next to other implementations, in one run.

Try:
  smallgpt bench attention
  smallgpt bench train
  smallgpt bench scaling"""

app = App(name="bench", help=ABOUT)
app.command(attention)
app.command(layer_norm)
app.command(cross_entropy)
app.command(train)
app.command(generate)
app.command(scaling)
