"""Visual tools: functions that look at or draw on pictures (today `mmreason.tools.draw`)."""
