"""AEM and related algorithms inside verl: the wraps of verl, the settings, support for CPU-only machines, the demo."""
