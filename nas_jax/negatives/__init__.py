"""What makes a sample hard: mining in the batch, replaced image tokens (NVA), replaced words
(NTA).
"""
