"""Stage one of an edit: editors of a video's first frame, which the rest of the video follows."""

EDITORS = {
    "recolour": "anyv2v.frame_editors.recolor:Recolor",
    "palette": "anyv2v.frame_editors.palette:Palette",
    "posterise": "anyv2v.frame_editors.style:Posterize",
    "edges": "anyv2v.frame_editors.style:Edges",
    "command": "anyv2v.frame_editors.command:Command",
    "instruct-pix2pix": "anyv2v.frame_editors.instruct_pix2pix:InstructPix2Pix",
    "ip-adapter": "anyv2v.frame_editors.ip_adapter:IPAdapter",
    "t2i-adapter": "anyv2v.frame_editors.t2i_adapter:T2IAdapter",
}
"""Name of an editor -> "module:class" of its `FrameEditor`, imported when the editor is used."""
