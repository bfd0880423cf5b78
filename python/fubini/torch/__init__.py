"""The torch side of fubini: layer and optimizer."""

from fubini.torch.layer import QuantumLayer as QuantumLayer
from fubini.torch.likelihoods import Bernoulli as Bernoulli
from fubini.torch.likelihoods import Categorical as Categorical
from fubini.torch.likelihoods import Gaussian as Gaussian
from fubini.torch.likelihoods import Poisson as Poisson
from fubini.torch.momentum import HeavyBall as HeavyBall
from fubini.torch.momentum import Spring as Spring
from fubini.torch.optimizer import QNGOptimizer as QNGOptimizer
from fubini.torch.replace import replace_torch_layers as replace_torch_layers
from fubini.torch.shot_optimizer import ShotQNGOptimizer as ShotQNGOptimizer
