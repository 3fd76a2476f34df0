"""AEM and its neighbours inside verl: the seam, the settings, the machine without a GPU, the demo."""
