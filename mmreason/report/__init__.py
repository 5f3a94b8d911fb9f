"""The page of a run: one HTML file that needs nothing else (`mmreason.report.build.build_report`)."""
