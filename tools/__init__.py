"""Visual tools, one file each: functions that look at or draw on pictures. `mmreason.agent.tools` says what a tool is."""
