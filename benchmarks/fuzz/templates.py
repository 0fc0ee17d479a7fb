"""What random programs are made of: expressions of `x` [B, n], as text.

In a template `e` is an earlier value of the shape of `x`; $W is a matrix [n, m], $Q one
[n, n], $o one to two outputs, $v a vector [n], $b one that is added ([m] after $W), $s a
number, $p a positive vector, $K and $F kernels; $c is a literal near 1, $l one of any
size and $i its inverse.
"""

WIDEST = 6  # Numbers in a value, with few exceptions.

LINEAR = (
    'x @ $W + $b', 'x @ $W', 'x * $v + $b', 'x * $s', 'x * $l', 'x / $v', '$b - x',
    'x * $l * $i', 'x / $l', 'jnp.cumsum(x * $v, axis=1)', 'x[:, ::-1] * $v',
    'jnp.concatenate([x, x * $v], axis=1)', 'x - x.mean(axis=1, keepdims=True)',
    'x[:, jnp.array([0, 1, 0])] * $s', 'jnp.pad(x * $s, ((0, 0), (1, 1)))',
    'jnp.einsum("bi,ij,jk->bk", x, $Q, $W)', 'x @ ($Q @ $Q)', 'x * ($v * $v)',
    'x + e * $v', 'x - e', 'x @ $Q - e @ $Q', '(x * $v).sum(axis=1, keepdims=True)',
    'jnp.where(jnp.arange(x.shape[1]) > 0, x, $b)', 'x.reshape(len(x), -1, 1)[:, :, 0]',
    '(x * $v) @ $W + $b', 'lax.dynamic_slice(x * $s, (0, 1), (len(x), 2))',
    'lax.conv_general_dilated(x[:, :, None], $K, (1,), "SAME", dimension_numbers='
    '("NWC", "WIO", "NWC")).reshape(len(x), -1)',
    'lax.reduce_window(x * $s, 0., lax.add, (1, 2), (1, 1), "VALID")',
    'x.at[:, 0].set($s)', 'x.at[:, 0].add($s)', 'x.at[:, 1].multiply($s)',
    'jnp.roll(x, 1, axis=1) * $v', 'jnp.tile(x, (1, 2)) * $s',
)
PIECEWISE = (
    'jax.nn.relu(x)', 'jax.nn.relu(x * $l) * $i', 'abs(x)', 'jnp.maximum(x, $b)',
    'jnp.minimum(x, $b)', 'jax.nn.leaky_relu(x, $c)', 'jnp.clip(x, -$c, $c)',
    'jax.nn.relu6(x)', 'jax.nn.hard_tanh(x)', 'jax.nn.hard_sigmoid(x)',
    'jnp.where(x > 0, x, $c * x)', 'jnp.where(x > 0, x, $p * x)', 'jnp.sign(x)',
    'jnp.floor(x)', 'jnp.ceil(x)', 'jnp.round(x)', 'jnp.maximum(x, -x)',
    'jnp.where(x < 0, -x, x)', 'jax.nn.relu(x) - jax.nn.relu(-x)',
    'jnp.where(x > $c, x, $c)', 'jnp.maximum(x, $c * x)', 'lax.clamp(-$c, x, $c)',
    '(x > 0).astype(x.dtype)', 'jnp.where(x > 0, $v, 0.)', 'x % $c',
    'jnp.where(x > $c, x * $v, $b)', 'jax.nn.relu(x) * jnp.where(x > 0, 1., 0.)',
)
SMOOTH = (
    'jnp.exp(x)', 'jnp.exp(-x)', 'jnp.exp2(x)', 'jnp.expm1(x)', 'jnp.log(x)',
    'jnp.log(abs(x) + $p)', 'jnp.log1p(jnp.exp(x))', 'jnp.log1p(x)',
    'jax.nn.sigmoid(x)', 'jnp.tanh(x)', 'jax.nn.softplus(x)', 'lax.erf(x)',
    'lax.erfc(x)', 'jax.nn.gelu(x, approximate=False)', 'jax.nn.gelu(x)',
    'jax.nn.silu(x)', 'jnp.sin(x)', 'jnp.cos(x)', 'jnp.sqrt(x)', 'jnp.sqrt(abs(x))',
    'lax.rsqrt(x)', 'lax.rsqrt(jnp.square(x) + $p)', 'jnp.cbrt(x)', '1 / x', '$v / x',
    '1 / (1 + jnp.exp(-x))', 'jnp.square(x)', 'x * x', 'x * x * x', 'x ** 3', 'x ** 4',
    'x ** -1', 'x ** -2', 'x ** -3', 'x ** 0.5', 'x ** 2.5', 'x ** -0.5', 'x ** 7',
    'jnp.power(x, 2.)', 'jnp.power(abs(x), $c)', 'jax.nn.elu(x)', 'jax.nn.selu(x)',
    'jax.nn.celu(x)', 'jax.nn.log_sigmoid(x)', 'jax.nn.soft_sign(x)',
    'jax.nn.hard_silu(x)', 'jax.nn.squareplus(x)', 'jax.nn.mish(x)', 'jnp.tan(x)',
    'x * jax.nn.sigmoid($c * x)', 'jnp.exp(x * $l) * $i', 'jnp.square(x * $l) * $i',
    'jnp.tanh(x * $l) * $i', 'jnp.sinh(x)', 'jnp.arctan(x)', 'jnp.log(jnp.exp(x) + 1)',
    'jax.nn.softplus(x * $l) * $i', 'jnp.sqrt(jnp.square(x) + 1e-12)',
)
JOINT = (
    'jax.nn.softmax(x)', 'jax.nn.log_softmax(x)', 'jnp.exp(x) / jnp.exp(x).sum(1, '
    'keepdims=True)', 'jax.nn.logsumexp(x, axis=1, keepdims=True)',
    'x.max(axis=1, keepdims=True)', 'x.min(axis=1, keepdims=True)',
    'jnp.maximum(x, x[:, ::-1])', 'x * x[:, ::-1]', 'jnp.linalg.norm(x, axis=1, '
    'keepdims=True)', 'x / jnp.linalg.norm(x, axis=1, keepdims=True)',
    'x / (jnp.sqrt(jnp.square(x).sum(1, keepdims=True)) + $c)', 'jnp.sort(x, axis=1)',
    'lax.top_k(x, 2)[0]', 'x.prod(axis=1, keepdims=True)', 'jnp.var(x, 1, keepdims=True)',
    '(x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True) + 1e-6) * $v + '
    '$b', 'x * lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + 1e-6)',
    'jnp.where(jnp.arange(x.shape[1]) > 0, x, -jnp.inf).max(1, keepdims=True)',
    'jax.nn.softmax(jnp.where(jnp.arange(x.shape[1]) > 0, x, -jnp.inf))',
    'jax.nn.softmax(x, where=jnp.arange(x.shape[1]) > 0)',
    'x.mean(1, keepdims=True, where=jnp.arange(x.shape[1]) > 0)',
    'jax.nn.glu(jnp.concatenate([x @ $Q, x], 1))', 'jnp.cumprod(x, axis=1)',
    'lax.cummax(x, axis=1)', 'jnp.abs(x).sum(1, keepdims=True)',
    'lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 1), "VALID")',
    'jnp.einsum("bi,bj->bij", x, x @ $Q).reshape(len(x), -1) @ $o',
    'jnp.einsum("bi,bi->b", x, x @ $Q)[:, None]',
    'jax.nn.softmax(x) * jax.nn.log_softmax(x)', 'jax.nn.standardize(x)',
)
BINARY = (
    '(x @ $W + $b) * (x @ $W)', 'jnp.maximum(x @ $W, x @ $W)',
    'jnp.minimum(x @ $W, e @ $Wn + $b)', '(x @ $W) / (jnp.exp(x @ $W) + $c)', 'x / e',
    'x * e', 'jnp.maximum(x, e)', 'jnp.minimum(x, e * $v)', 'jnp.logaddexp(x, e)',
    'x * jax.nn.sigmoid(e)', 'x / (1 + jnp.exp(-e))', 'x * jnp.log(x)',
    'jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, x, 1)), 0)',
    'jax.scipy.special.xlogy(x, x)', 'jax.nn.silu(1 / x)', 'jnp.exp(-jnp.square(x))',
    'x * jnp.exp(-x)', 'x * jnp.tanh(e)', 'jnp.power(abs(x) + $c, e)', 'jnp.hypot(x, e)',
    'jnp.where(x > 0, e, 0.)', 'jnp.where(x > 0, e, x)', 'x * (1 - x)', 'x - x * e',
    'jnp.where(x > e, x, e)', '(x - e) * (x + e)', 'x / (x + $c)', 'x / jnp.exp(x)',
)
DERIVED = (
    'jax.grad(lambda z: (jnp.tanh(z @ $W) @ $o).sum())(x)',
    'jax.grad(lambda z: (jax.nn.relu(z @ $W) @ $o).sum())(x)',
    'jax.jvp(jax.nn.sigmoid, (x,), (x * 0 + $v,))[1]',
    'lax.scan(lambda h, m: (jnp.tanh(h @ m), None), x, jnp.stack([$Q, $Q]))[0]',
    'lax.fori_loop(0, 2, lambda i, h: jax.nn.relu(h @ $Q), x)',
    'lax.cond(True, jnp.tanh, jnp.exp, x)', 'jax.checkpoint(jnp.tanh)(x)',
)
KINDS = {'linear': (LINEAR, 5), 'piecewise': (PIECEWISE, 4), 'smooth': (SMOOTH, 5),
         'joint': (JOINT, 2), 'binary': (BINARY, 2), 'derived': (DERIVED, 0.4)}
# Every row of these depends on all of the batch: they must be refused.
MIXING = (
    'x - x.mean(axis=0)', 'x[::-1]', 'x / (1 + jnp.square(x).sum())',
    '(x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5) * $v', 'jax.nn.softmax(x, axis=0)',
    'jnp.roll(x, 1, axis=0)', 'jnp.cumsum(x, axis=0)', 'x * x[:1]', 'jnp.sort(x, axis=0)',
)
# Images [B, 3, 4, 2] to vectors.
IMAGES = (
    'lax.conv_general_dilated(x, $F, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO",'
    ' "NHWC")).reshape(len(x), -1)[:, ::5]',
    'lax.conv_general_dilated(x, $F, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO",'
    ' "NHWC")).reshape(len(x), -1)',
    'lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 2, 1), "VALID")'
    '.reshape(len(x), -1)',
    'lax.reduce_window(x * $s, 0., lax.add, (1, 3, 2, 1), (1, 1, 2, 1), "SAME")'
    '.reshape(len(x), -1)[:, :5]',
    'x.mean(axis=(1, 2))', 'x.max(axis=(1, 2)) * $s', 'x.transpose(0, 3, 1, 2).reshape('
    'len(x), 2, -1).sum(2) * $s', 'x[:, 1:, ::2, :1].reshape(len(x), -1)',
)
