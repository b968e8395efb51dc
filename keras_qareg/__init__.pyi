# All public names, for editors and type checkers; `__init__.py` reads them from here too.
from . import callbacks as callbacks
from . import config as config
from . import export as export
from . import layers as layers
from . import numerics as numerics
from . import optimizers as optimizers
from . import plots as plots
from . import quantizers as quantizers
from . import regularizers as regularizers
from . import report as report
from .allocation import allocate as allocate
from .compressing import compress as compress
from .models import codebooks as codebooks
from .models import distill as distill
from .models import from_tf_keras as from_tf_keras
from .models import quantization_aware as quantization_aware
from .models import quantize_activations as quantize_activations
from .models import recalibrate as recalibrate
from .models import share_weights as share_weights
from .models import shrink as shrink
from .models import strip as strip
from .models import wnq as wnq
from .numerics.codebook import Codebook as Codebook
from .plans import Plan as Plan

__version__: str
