"""What `make deploy` says about the stack's alarms, on the embedded AWS."""

import pytest

from deploy.alarms import check_alarm
from local.deploy import deploy

TEMPLATE = """
Parameters: {Service: {Type: String}}
Resources:
  Key:
    Type: AWS::KMS::Key
    Properties:
      KeyPolicy:
        Version: "2012-10-17"
        Statement:
          - Effect: Allow
            Principal: {AWS: !Sub "arn:aws:iam::${AWS::AccountId}:root"}
            Action: kms:*
            Resource: "*"
          - Effect: Allow
            Principal: {Service: !Ref Service}
            Action: [kms:Decrypt, kms:GenerateDataKey]
            Resource: "*"
  Topic:
    Type: AWS::SNS::Topic
    Properties: {KmsMasterKeyId: !Ref Key}
  TopicPolicy:
    Type: AWS::SNS::TopicPolicy
    Properties:
      Topics: [!Ref Topic]
      PolicyDocument:
        Statement:
          - Effect: Allow
            Principal: {Service: cloudwatch.amazonaws.com}
            Action: sns:Publish
            Resource: !Ref Topic
  Alarm:
    Type: AWS::CloudWatch::Alarm
    Properties:
      Namespace: Nothing
      MetricName: Measured
      Statistic: Sum
      Period: 60
      EvaluationPeriods: 1
      Threshold: 1
      ComparisonOperator: GreaterThanOrEqualToThreshold
      AlarmActions: [!Ref Topic]
"""  # its metric has no data, and missing data leave the state that was set


@pytest.fixture
def alarm_of(embedded_aws, tmp_path):
    """Deploys a stack with one alarm whose topic's key allows a service; the alarm's name."""

    def make(stack, service):
        template = tmp_path / "template.yaml"
        template.write_text(TEMPLATE)
        deploy(template, stack, {"Service": service}, embedded_aws.session)
        found = embedded_aws.client("cloudformation").describe_stack_resource(
            StackName=stack, LogicalResourceId="Alarm"
        )
        return found["StackResourceDetail"]["PhysicalResourceId"]

    return make


def test_an_alarm_that_reaches_its_topic_is_reported_so(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-heard", "cloudwatch.amazonaws.com")
    said = check_alarm("alarms-heard", embedded_aws.session)
    assert f"the test of {alarm} published a notification to the topic" in said
    (described,) = embedded_aws.client("cloudwatch").describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    assert described["StateReason"] == "Test by make deploy of stack alarms-heard. No action needed."


def test_a_key_that_does_not_let_cloudwatch_in_is_reported_with_the_reason(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-unheard", "events.amazonaws.com")
    said = check_alarm("alarms-unheard", embedded_aws.session)
    assert f"the test of {alarm} FAILED: Failed to execute action" in said
    assert "is not authorized to perform: SNS:Publish" in said
    assert "Allow cloudwatch.amazonaws.com kms:Decrypt and kms:GenerateDataKey" in said


def test_alarms_that_are_off_already_are_left_alone(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-busy", "cloudwatch.amazonaws.com")
    cloudwatch = embedded_aws.client("cloudwatch")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="a real one")
    said = check_alarm("alarms-busy", embedded_aws.session)
    assert said == "Alarms: not tested, since all 1 alarms of stack alarms-busy are in ALARM."
    (described,) = cloudwatch.describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    assert described["StateReason"] == "a real one"


def test_an_action_that_never_appears_in_the_history_is_reported(embedded_aws, alarm_of, monkeypatch):
    alarm = alarm_of("alarms-slow", "cloudwatch.amazonaws.com")
    embedded_aws.client("cloudwatch").disable_alarm_actions(AlarmNames=[alarm])
    monkeypatch.setattr("deploy.alarms.ACTION_SECONDS", 0.5)
    said = check_alarm("alarms-slow", embedded_aws.session)
    assert f"the history of {alarm} contains no action 0 s after the test" in said
    assert f"aws cloudwatch describe-alarm-history --alarm-name {alarm}" in said
