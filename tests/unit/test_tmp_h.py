from condorctl import paths
from condorctl.ledger import Ledger
import pytest
@pytest.fixture
def ledger(project, monkeypatch):
    return Ledger(paths.ledger())
def test_a(ledger, request):
    assert 0, (ledger.name, request.fixturenames)
