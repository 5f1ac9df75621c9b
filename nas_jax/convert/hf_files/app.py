"""A page where this model scores captions of a picture.

pip install gradio torch transformers pillow
python app.py
"""

from pathlib import Path

FOLDER = str(Path(__file__).parent)


def load(folder=FOLDER):
    """Model and processor. Code that lies in the folder is run, as this file is."""
    from transformers import AutoModel, AutoProcessor

    code = {"trust_remote_code": True} if Path(folder, "modeling_nas.py").is_file() else {}
    model = AutoModel.from_pretrained(folder, **code).eval()
    return model, AutoProcessor.from_pretrained(folder, **code)


def upright(picture):
    """As training reads files: turned as their EXIF says, and on white where transparent."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def score(model, processor, picture, captions):
    """Rows of caption, ITC cosine and ITM probability, best first; without ITM for CLIP's kin.

    picture: a PIL picture. captions: texts; empty ones are left out.
    """
    import torch

    captions = [text.strip() for text in captions if text.strip()]
    if picture is None or not captions:
        return []
    given = processor(images=upright(picture), text=captions, return_tensors="pt")
    with torch.inference_mode():
        if hasattr(model, "score_texts"):
            itc, itm = model.score_texts(**given)
            columns = [itc[0].tolist(), itm[0].tolist()]
        else:
            output = model(**given)
            columns = [(output.image_embeds @ output.text_embeds.T)[0].tolist()]
    return sorted(map(list, zip(captions, *columns, strict=True)), key=lambda row: -row[-1])


def main():
    """Opens the page."""
    import gradio

    model, processor = load()
    names = ["caption", "ITC cosine", "ITM probability"]

    def rows(picture, text):
        return score(model, processor, picture, text.splitlines())

    gradio.Interface(
        rows,
        [gradio.Image(type="pil"), gradio.Textbox(lines=4, label="captions, one a line")],
        gradio.Dataframe(headers=names if hasattr(model, "score_texts") else names[:2]),
        title=Path(FOLDER).resolve().name,
    ).launch()


if __name__ == "__main__":
    main()
