"""What a sweep over all pairs is asked for: bits of `flags`, the same on every backend."""

# The positive takes no part in the log-sum-exp, or in the sum.
POSITIVE_EXCLUDED = 1
# Log-sum-exps of columns too, in the same sweep.
TWO_WAY = 2
# Log-sum-exps are of scores brought into [-clip, clip], and scores beyond have no gradient in them.
CLAMPED = 4
# Sums of scores too, over rows and, both ways, over columns: for smoothed targets.
TOTALS = 8
# The upstream gradients of rows, positives and columns are three, as the caller gives them, and there is no target. (On
# the CPU they always are.)
APART = 16
# The CPU's, of gradients: rows and columns have an exponential each, since one number cannot serve both.
SEPARATE_EXPONENTIALS = 32
# The CPU's, of gradients formed with the values: the log-sum-exp's alone, without a target.
WITHOUT_TARGET = 64
# The CPU's, of softplus sums formed with their gradients: a positive that is left out counts as softplus(-s), as heavy
# as all negatives together.
POSITIVE_LOGISTIC = 128
# The CPU's, of softplus sums: log-sum-exps of clamped scores too, whose gradient is not formed.
LOG_SUM_EXP_BESIDE = 256
