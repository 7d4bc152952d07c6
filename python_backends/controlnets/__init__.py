"""ControlNets as services: their network, calls of those here and elsewhere, residuals, pictures.

May import `backend` and the rooms below it.
"""
