"""The cascade of linear attention with a memory, as `linear/base.py` computes it: chunk by chunk.

In the language of `passes.py`: m1 is the chunk, m0 the place of a key in it, n0 that of a query. T[n0,m0] is 1 for keys
not later than the query, U[n0,m0] for those before it, else 0; G are log decays, H the strengths of writing.
"""

from __future__ import annotations


def recurrence(*, gates: str = "", delta: bool = False) -> str:
    """gates: "", "scalar" (one per token) or "vector" (one per channel of the key); delta: the delta rule."""
    assert gates in ("", "scalar", "vector"), f"gates {gates!r}"
    e = "e," if gates == "vector" else ""
    decays = f"""
        GC[{e}m1,n0]    = T[n0,m0] * G[{e}m1,m0]
        GT[{e}m1]       = sum(G[{e}m1,m0])
        DQ[{e}m1,n0]    = exp(GC[{e}m1,n0])
        DK[{e}m1,m0]    = exp(GT[{e}m1] - GC[{e}m1,m0])
        DP[{e}m1,n0,m0] = exp(GC[{e}m1,n0] - GC[{e}m1,m0])
        DS[{e}m1]       = exp(GT[{e}m1])
    """
    on_query, on_key = (f" * DQ[{e}m1,n0]", f" * DK[{e}m1,m0]") if gates else ("", "")
    on_pair, on_state = (f" * DP[{e}m1,n0,m0]", f"DS[{e}m1] * ") if gates else ("", "")
    # the forward substitution: each place needs what those before it wrote
    replaced = f"""
        KK[m1,n0,m0] = U[n0,m0] * K[e,m1,n0] * K[e,m1,m0]{on_pair}
        KS[f,m1,n0]  = K[e,m1,n0]{on_query} * S[e,f,m1]
        R[f,m1,n0]   = V[f,m1,n0] - KS[f,m1,n0]
        W[f,m1,n0]   = H[m1,n0] * R[f,m1,n0] - H[m1,n0] * KK[m1,n0,m0] * W[f,m1,m0]
    """
    written = "W" if delta else "V"
    state = f"""
        QK[m1,n0,m0] = T[n0,m0] * Q[e,m1,n0] * K[e,m1,m0]{on_pair}
        QV[f,m1,n0]  = QK[m1,n0,m0] * {written}[f,m1,m0]
        QS[f,m1,n0]  = Q[e,m1,n0]{on_query} * S[e,f,m1]
        O[f,m1,n0]   = QS[f,m1,n0] + QV[f,m1,n0]
        KV[e,f,m1]   = K[e,m1,m0]{on_key} * {written}[f,m1,m0]
        S[e,f,m1+1]  = {on_state}S[e,f,m1] + KV[e,f,m1]
    """
    return (decays if gates else "") + (replaced if delta else "") + state
