"""From YAML to a checked pipeline: what a spec and a site's profile may say."""
