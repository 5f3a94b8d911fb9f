"""Agents that call visual tools while they think: pictures, tools, wire formats, episodes, the loop, traces."""
