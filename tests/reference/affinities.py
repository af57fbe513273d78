"""The non-local operation: equation 1 of the paper, pair by pair."""

import numpy as np

from tests.reference.softmaxes import probabilities


def seen_by(query, sizes, axes):
    """The key positions j that a query position looks at."""
    t, h, w = query
    everything = np.ndindex(sizes)
    if axes == "space":
        return [j for j in everything if j[0] == t]
    if axes == "time":
        return [j for j in everything if j[1:] == (h, w)]
    return list(everything)


def weights(theta, keys, mode, scale, weight):
    """f(x_i, x_j) / C(x) for one query, a vector, and its list of keys."""
    if mode in ("gaussian", "embedded"):  # f = exp(...), C(x) = the sum of f: a softmax
        return probabilities([(1 if scale is None else scale) * dot(theta, phi) for phi in keys])
    if mode == "dot":
        return [dot(theta, phi) / len(keys) for phi in keys]
    return [max(dot(weight, [*theta, *phi]), 0) / len(keys) for phi in keys]


def dot(a, b):
    return sum(u * v for u, v in zip(a, b, strict=True))


def non_local(theta, phi, g, mode="embedded", scale=None, axes="spacetime", weight=None):
    """y[i] = the sum over j of f(x_i, x_j) / C(x) * g[j]."""
    y = np.zeros((*theta.shape[:4], g.shape[4]))
    for n, *i in np.ndindex(theta.shape[:4]):
        seen = seen_by(i, phi.shape[1:4], axes)
        share = weights(theta[(n, *i)], [phi[n][j] for j in seen], mode, scale, weight)
        for p, j in zip(share, seen, strict=True):
            for d in range(g.shape[4]):
                y[(n, *i, d)] += p * g[n][j][d]
    return y


def non_local_backward(gy, theta, phi, g, mode="embedded", scale=None, axes="spacetime", weight=None):
    """Pair by pair: what arrives at the weight p[i, j], what that means for its logit s[i, j], and for both vectors."""
    gtheta, gphi, gg = np.zeros(theta.shape), np.zeros(phi.shape), np.zeros(g.shape)
    gweight = None if weight is None else np.zeros(weight.shape)
    for n, *i in np.ndindex(theta.shape[:4]):
        i, seen = (n, *i), seen_by(i, phi.shape[1:4], axes)
        share = weights(theta[i], [phi[n][j] for j in seen], mode, scale, weight)
        gshare = [dot(gy[i], g[n][j]) for j in seen]
        for j, p, gp in zip(seen, share, gshare, strict=True):
            gg[n][j] += p * gy[i]
            if mode in ("gaussian", "embedded"):
                gs = p * (gp - dot(gshare, share)) * (1 if scale is None else scale)
                gtheta[i], gphi[n][j] = gtheta[i] + gs * phi[n][j], gphi[n][j] + gs * theta[i]
            elif mode == "dot":
                gs = gp / len(seen)
                gtheta[i], gphi[n][j] = gtheta[i] + gs * phi[n][j], gphi[n][j] + gs * theta[i]
            elif p > 0:  # concat: the rectifier lets the gradient through
                gs, inner = gp / len(seen), theta.shape[4]
                gtheta[i], gphi[n][j] = gtheta[i] + gs * weight[:inner], gphi[n][j] + gs * weight[inner:]
                gweight += gs * np.concatenate([theta[i], phi[n][j]])
    return (gtheta, gphi, gg) if weight is None else (gtheta, gphi, gg, gweight)


def attention(theta, phi, positions, mode="embedded", scale=None, axes="spacetime", weight=None):
    """The weights of chosen queries, drawn onto the map of keys."""
    out = np.zeros((len(theta), len(positions), *phi.shape[1:4]))
    for n, q in np.ndindex(out.shape[:2]):
        seen = seen_by(positions[q], phi.shape[1:4], axes)
        share = weights(theta[n][tuple(positions[q])], [phi[n][j] for j in seen], mode, scale, weight)
        for j, p in zip(seen, share, strict=True):
            out[n, q][j] = p
    return out
