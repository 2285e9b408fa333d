"""The cluster of the integration tests, one for each file here that asks for it."""

from tests.integration.conftest import leaves_nothing as leaves_nothing
from tests.integration.conftest import shared_base as shared_base
from tests.integration.conftest import shared_cluster as shared_cluster
from tests.integration.conftest import start as start
from tests.integration.conftest import start_script as start_script
