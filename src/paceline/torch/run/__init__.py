"""Records a training script that knows nothing of it.

`launch` starts the script on every rank through torch elastic. What runs there is this package
itself, `python -m paceline.torch.run`: it installs the recorder and then runs the script.
"""

from paceline.torch.run._facts import hardware, versions
from paceline.torch.run._launch import Launched, launch
from paceline.torch.run._rows import Counted, steps_of
