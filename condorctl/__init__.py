"""condorctl: pipelines of training stages on HTCondor, one ledger for all that they leave behind.

Importing the package costs nothing: jobs import `condorctl.job` from it on execute nodes that have
neither HTCondor's bindings nor SQLAlchemy.
"""

__version__ = "0.1.0"
