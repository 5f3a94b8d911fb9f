"""mmreason.train"""
