"""Images that stages run in: built, pushed to a registry, checked before a job needs them."""
