"""Does the student say what the teacher says? EmpLB, FaithUB, agreement.

    import rkd_jax as rkd
    ball = rkd.bounds.linf_ball(images, 0.05, lower=0.0, upper=1.0)
    low = rkd.faithfulness.emp_lb(teacher, student, ball, key=key)
    high = rkd.faithfulness.faith_ub(teacher, student, ball, method='crown')
"""

from rkd_jax.faithfulness.certified import METHODS, agreement, faith_ub
from rkd_jax.faithfulness.empirical import Witness, emp_lb, exactly, witness
from rkd_jax.faithfulness.exact import milp
from rkd_jax.faithfulness.search import Bracket, branch_and_bound

__all__ = ['METHODS', 'Bracket', 'Witness', 'agreement', 'branch_and_bound', 'emp_lb',
           'exactly', 'faith_ub', 'milp', 'witness']
