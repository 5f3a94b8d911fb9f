"""mmreason.rewards"""
