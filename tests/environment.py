"""Set a new data directory and remove inherited settings before Django loads its settings."""

import os
import tempfile

DATA = tempfile.mkdtemp(prefix="deploy-portal-tests-")
os.environ["DATA_DIR"] = DATA
os.environ["TEST_DATABASE"] = f"{DATA}/test.sqlite3"
os.environ["CHANNEL_PREFIX"] = f"test-{os.getpid()}"
for name in [name for name in os.environ if name.startswith(("STACK_", "DOKPLOY_", "PORTAL_", "SIMULATOR_"))]:
    del os.environ[name]
