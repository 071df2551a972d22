"""Real Dynamo runtimes, installed beside the project and driven over pipes.

Two halves live here. `install` and `peers` run in our own environment and only
make directories, command lines and environments. `dynamo_client`,
`dynamo_worker`, `openai_client`, `raw_client` and what they import run as scripts inside the
peers' virtual environments, so they use the standard library alone.
"""

from .peers import BENCH as BENCH
from .peers import FRONTEND as FRONTEND
from .peers import can_namespace as can_namespace
from .peers import client_command as client_command
from .peers import environment as environment
from .peers import frontend_command as frontend_command
from .peers import is_installed as is_installed
from .peers import is_namespaced as is_namespaced
from .peers import items_sha as items_sha
from .peers import namespace_script as namespace_script
from .peers import namespaced as namespaced
from .peers import needs_namespace as needs_namespace
from .peers import openai_command as openai_command
from .peers import python as python
from .peers import raw_client_command as raw_client_command
from .peers import worker_command as worker_command
