"""Facts of the tokenizer that made some ids, and the one check that another tokenizer is not used with them."""

from smalti.config import Config, Triple, Tuple
from smalti.errors import IntegrityError


class TokenizerInfo(Config):
    """Facts of a tokenizer that give ids their meaning. Token sets, compressed files and generators record them."""

    fingerprint: str
    """Sha256 of its config and weights."""
    levels: Tuple[int]
    """Values of each digit; digit 0 is the least significant of an id."""
    codebook_size: int
    strides: Triple[int]
    """Frames, height and width in pixels of one token."""
    digit_order: str = "id = sum of digit[j] * levels[0] * ... * levels[j - 1]: digit 0 is the least significant"
    padding: str = "the last column, row and frame repeat up to 1 + s*n frames and whole strides"

    def check(self, tokenizer: "TokenizerInfo", where: object) -> None:
        """Raise IntegrityError, naming `where`, unless `tokenizer` is the tokenizer with these facts."""
        for name in ("levels", "strides"):
            wanted, actual = getattr(self, name), getattr(tokenizer, name)
            if wanted != actual:
                mine, other = self.fingerprint[:16], tokenizer.fingerprint[:16]
                raise IntegrityError(
                    f"{where}: made by a tokenizer with {name} {wanted} ({mine}...), this one has {actual} "
                    f"({other}...): use the tokenizer that made it"
                )
        check_fingerprint(self.fingerprint, tokenizer.fingerprint, where)


def check_fingerprint(wanted: str, actual: str, where: object) -> None:
    """Raise IntegrityError, naming `where`, unless the tokenizer that made the ids of `where` is the present one."""
    if wanted != actual:
        raise IntegrityError(
            f"{where}: made by the tokenizer {wanted[:16]}..., this one is {actual[:16]}...; its ids mean nothing to "
            "another one: use the tokenizer that made it"
        )
