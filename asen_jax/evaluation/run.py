"""`--mode eval`: evaluate a trained network, print the table, and write the files."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from asen_jax import files, processes
from asen_jax.checkpoint import identity
from asen_jax.data.prepared import Records
from asen_jax.errors import InputError
from asen_jax.evaluation.evaluate import evaluate, rank_examples
from asen_jax.evaluation.figures import draw_rankings
from asen_jax.evaluation.results import format_table
from asen_jax.matching import attribute_names, config_as_trained
from asen_jax.network import Embed, TrainedNetwork

OTHER_RECORDS = 'The network was trained on other records, which may include photos that are scored here.'


def evaluate_network(
    config: ConfigDict,
    network: TrainedNetwork,
    records: Records,
    workdir: Path,
    split: str,
    mesh: jax.sharding.Mesh,
    with_report: bool = False,
) -> dict:
    """Evaluate a trained network, print the table, and write `eval_<split>.json` and a picture of some rankings.

    `with_report` also writes `report.html`. Returns the figures.
    """
    embed = match_attributes(config, network.meta, records, workdir, network.embed_on(mesh))
    config = config_as_trained(network.meta, config)
    if network.meta.get('fingerprint') not in (None, records.fingerprint):
        records = records._replace(caveat=f'{records.caveat} {OTHER_RECORDS}'.strip())
    evaluation = evaluate(config, records, split, embed, network.meta['step'])
    result = evaluation.result | {'checkpoint_sha256': identity(network.meta)}
    print(format_table(result))
    rankings, page = rank_examples(config, records, embed, evaluation), ''
    if with_report:
        from asen_jax.evaluation.report import make_report  # loads Bokeh, which no other mode needs

        page = make_report(config, records, evaluation, embed, workdir, network.meta)
    if processes.is_writer():
        written = [Path(workdir) / f'eval_{split}.json']
        files.write_json(written[0], result)
        if rankings:
            written.append(written[0].with_suffix('.jpg'))
            with files.write_atomically(written[-1]) as file:
                draw_rankings(rankings).save(file, 'JPEG', quality=88)
        if page:
            written.append(Path(workdir) / 'report.html')
            files.write_text(written[-1], page)
        print('\n'.join(f'wrote {path}' for path in written))
    return result


def match_attributes(config: ConfigDict, meta: dict, records: Records, workdir: Path, embed: Embed) -> Embed:
    """`embed` with the attributes of `records`, in their order; raises InputError if the network has different ones."""
    known = attribute_names(config, meta, records.attributes, workdir)
    if list(records.attributes) == known:
        return embed
    if set(records.attributes) != set(known):
        raise InputError(
            f'{workdir} was trained on the attributes {", ".join(known)}, but {records.directory} has '
            f'{", ".join(records.attributes)}; use the data it was trained on.'
        )
    order = np.array([known.index(name) for name in records.attributes])

    def reordered(images):
        return jax.tree.map(lambda part: part[:, order], embed(images))

    return reordered
