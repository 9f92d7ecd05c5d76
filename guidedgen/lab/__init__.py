"""The bundled world: a scene renderer with captions, and a tiny text-to-image model really trained on it.

`world` says what a scene is, `render` draws it, `captions` describes it, `taste` rates it; `networks` holds the other networks
(classifier, CLIPs, aesthetic head), `judge` decides whether a picture shows what its prompt asks for, `preference` which of
two people would rather have, `styles` draws pictures to take a style from, `training` trains all weights from scratch and `exam`
measures them. The weights are in `weights/`, with their model card.
"""
