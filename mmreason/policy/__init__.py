"""mmreason.policy"""
