"""The DiMSUM family; `wavemamba.models` gives its public names."""
