"""Changes what can be changed of a script from outside: who computes which example.

The global batches stay the script's own. What an example adds to the gradient stays the same, too:
see `_weights`. Where that cannot be told, nothing is changed, and one line says why.
"""

from paceline.torch.run.apply._apply import Applier
from paceline.torch.run.apply._verify import Verifier
