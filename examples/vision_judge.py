"""A vision model judges each picture: one that doesn't show what its prompt asks for is made once more.

    python examples/vision_judge.py CATALOG s3://BUCKET/PREFIX

Image API key in TOGETHER_API_KEY, the judge's in OPENAI_API_KEY or IMAGEMILL_JUDGE_KEY.
"""

import sys

from imagemill import InputError, generate_catalog


def main(catalog: str, output: str, base_url: str | None = None, judge: str | None = None) -> None:
    """Run the catalog for at most five dollars, the judge's cost included."""
    try:
        summary = generate_catalog(
            catalog=catalog,
            output=output,
            api={"provider": "together", "base_url": base_url},
            picture={"width": 512, "height": 512},
            quality={
                "judge": judge or "https://api.openai.com/v1",
                "judge_model": "gpt-4o-mini",
                "judge_question": "Would you put this picture into a shop window for this product?",
                "judge_threshold": 0.6,
                "judge_usd_per_million_input_tokens": 0.15,  # see the vendor's price list
                "judge_usd_per_million_output_tokens": 0.60,
                "on_suspect": "retry",
            },
            limits={"max_cost_usd": 5},
        )
    except InputError as error:  # nothing was sent to the image API
        sys.exit(str(error))
    print(f"{summary.judged} judged for ${summary.judge_cost_usd:.4f}, {summary.suspect} suspect")
    print(f"{summary.done} of {summary.unique} images for ${summary.cost_usd:.4f}: {summary.report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
