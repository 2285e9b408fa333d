"""`log_once` and its settings, under the name that libraries import them from."""

from ray_mono.util.rare_logging import disable_log_once_globally as disable_log_once_globally
from ray_mono.util.rare_logging import enable_periodic_logging as enable_periodic_logging
from ray_mono.util.rare_logging import log_once as log_once
