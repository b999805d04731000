"""What ranks tell each other: who they are, what they hold, what they measured."""

from paceline.torch.ranks._agreement import (
    broadcast_from_rank_0,
    check_same_model,
    check_same_plan,
    end_group,
    new_group_like,
)
from paceline.torch.ranks._differences import (
    Facts,
    Odd,
    difference,
    differences,
    digest_of_facts,
    gather_facts,
    gather_numbers,
    odd_ones,
)
from paceline.torch.ranks._gather import (
    all_gather_bytes,
    device_of,
    fresh_key,
    from_rank_0,
    gather_timeline,
)
from paceline.torch.ranks._meeting import MEETING_S, meet, own_store
from paceline.torch.ranks._replica import (
    Group,
    Replica,
    data_ranks_of,
    process_group_of,
    replica_of,
)
from paceline.torch.ranks._roll_call import RollCall, is_of_communication
